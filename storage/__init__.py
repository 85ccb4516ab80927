"""What everything on disk has in common: atomic writes, checked model folders, one kind of user error.

Every other package may import this one; it imports none of them.
"""
