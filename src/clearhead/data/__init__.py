"""From files to batches: `tokenizer` cuts text in pieces, `text` reads files, `batches` groups rows by length."""
