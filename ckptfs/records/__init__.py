"""What is written beside the data: the record of a file, the control directory and its parts."""
