"""Pictures that stand alone: for papers, for notebooks without a kernel, and for exported pages."""
