"""What a fit costs, predicted and counted: parameters, FLOPs, memory, time, disk."""
