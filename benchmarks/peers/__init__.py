"""What the library is compared with: the same mathematics written the usual ways."""
