"""Features of images: extractors, and the files that hold features."""
