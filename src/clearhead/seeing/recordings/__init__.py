"""What was seen: kept, asked, saved and opened again.

Reading order: recording -> questions -> summaries -> keeping -> memory -> store -> saving -> estimate -> peers.
"""
