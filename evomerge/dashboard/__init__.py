"""The searches of a record in a browser, while they run and afterwards: `evomerge dashboard`. It only reads.

live        what the record holds now, read only as far as it is new
parts       pieces of pages as functions of `Results`: no server, no state
pages       the list of searches, and the page of one
callbacks   what happens when something is clicked or the record grows
guard       who may look: the token, the headers that keep everything at home
app         all of it put together
"""
