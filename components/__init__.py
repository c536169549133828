"""Components: one ComponentResource a file, named after the thing it is."""
