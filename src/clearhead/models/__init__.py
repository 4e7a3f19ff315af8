"""The models, one file each: config first, then the classes, then how weights start."""
