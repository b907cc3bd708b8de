"""Several machines: a vec env on each, and one object that looks like one vec env."""
# async: nothing but the folder
