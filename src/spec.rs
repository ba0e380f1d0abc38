//! NVMe's vocabulary: registers, commands, completions, identify structures, log pages, status.
