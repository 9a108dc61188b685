"Quarto's notebook filter (ipynb-filters in _quarto.yml): a notebook's JSON comes in on stdin and goes out, ready for reading, on stdout."
import sys
import nbformat
from fmnb.site import prepare

nbformat.write(prepare(nbformat.read(sys.stdin, as_version=4)), sys.stdout)
