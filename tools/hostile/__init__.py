"""What a hostile user costs another one."""
