"""Search algorithms behind one ask/tell contract, one algorithm a file."""
