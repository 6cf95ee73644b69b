"""One way to a path, local or remote, and files that are whole or not there.

A path is text (or `os.PathLike`) everywhere, since pathlib makes a folder `gs:` of gs://,
and epath knows four kinds of URL and no globs, byte ranges or uploads. Here fsspec looks,
lists, reads and uploads, `atomic.new_file` alone writes, aside and then renamed, and
`files.copy_here` brings what must be mapped or opened by name. Orbax alone wants an
`epath.Path`, and gets it in `runs/checkpoint.py`.
"""
