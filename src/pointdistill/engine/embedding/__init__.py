"""Any shapes -> features on disk, and the search among them.

The way of a shape: `data.shape_lists` lists what was named and reads its points in other processes, `compute`
turns points into features, `loop` collects them in chunks on disk, `file` joins the chunks into one file and reads
it back, `search` looks for neighbours in it. `embed` is the call that does all but the search.
"""
