"""From files to batches: `tokenizer` cuts text into pieces with numbers, `text` reads files and groups rows."""
