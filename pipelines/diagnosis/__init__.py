"""The subjects of `codegrid doctor`: a file for each, which measures it and says what is wrong.

Every `measure_...` returns metrics by name, and every `find_...` turns such metrics into findings, ignoring missing
ones. `ROWS` say how each metric is shown, and which values are usual: others are marked.
"""
