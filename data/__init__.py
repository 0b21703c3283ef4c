"""What is read from disk: photos, labels, captions, WordNet. Needs no torch to import."""
