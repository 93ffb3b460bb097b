"""Curves of a running search in TensorBoard, Weights & Biases or MLflow, each behind one small protocol."""
