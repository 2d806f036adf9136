"""One module for each source of images; each exports `load(path, split)`."""
