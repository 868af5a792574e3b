"""Raw scans of one patient to images on the BraTS grid, and label maps back to the scans."""
