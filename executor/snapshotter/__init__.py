"""The file systems of steps: prepared, viewed, committed and compared (containerd's Snapshotter is the model).

``snapshotter`` is the interface, ``overlay`` and ``plain`` implement it. Both store a layer as a directory in the same
format (``layers``), so a store serves both. A root file system is passed to ``executor.sandbox`` as a value
(``rootfs``), which no other module interprets.
"""
