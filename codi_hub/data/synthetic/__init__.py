"""Images generated on the fly: dead leaves, ray-cast scenes and their edits."""
