"""Any shapes -> features on disk, and the search among them.

The way of a shape: a list of what was named (`data.shape_lists`), points read ahead by other processes, features
(`compute`), finished chunks (`work`), one file (`output`), read back in blocks (`index`), searched (`search`).
"""
