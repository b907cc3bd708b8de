"""The parent on its event loop: workers supervised, updates published, calls and events awaited."""
# async: nothing but the folder
