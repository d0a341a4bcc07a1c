"""What `/proc` tells of processes: who writes, who has a file open or mapped, who died."""
