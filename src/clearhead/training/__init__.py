"""Training: a recipe says what, an objective turns batches into losses, the loop yields steps, a run saves them."""
