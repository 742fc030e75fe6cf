"""Sets of pictures with truth: opened, paired, read, checked."""
