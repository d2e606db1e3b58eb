"""Running steps where no namespaces can be made: each in a chroot, with a seccomp supervisor (seccomp_unotify(2)).

A step has no mounts, no processes and no network of its own. What mounts would show is put in its root and taken out
again (``placements``); its files of /proc are opened for it by a supervisor (``supervisor``, ``proc_files``); a reaper
kills what it leaves behind (``reaper``).
"""
