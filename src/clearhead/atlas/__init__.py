"""What every head of a model does over a whole corpus: `survey` streams and counts, `picture` draws the table."""
