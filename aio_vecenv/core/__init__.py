"""The pure core: what crosses a pipe, what a row may become, who must be told what. No loop, process or clock."""
# pure: nothing but the folder
