"""Tiny products on one thread: threads that wait for each other's core cost a hundredfold."""

import torch

torch.set_num_threads(1)
