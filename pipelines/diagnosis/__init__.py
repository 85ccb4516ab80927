"""What `doctor` looks at: a file for each subject, which measures figures and says what is wrong with them.

Every `measure_...` returns figures by name, and every `find_...` turns such figures into findings; it says nothing
about figures that are not there.
"""
