# Slicer writes the extension's description and package here.
