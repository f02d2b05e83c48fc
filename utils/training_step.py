"""The training step of a network; on a GPU it is recorded once and replayed, with CUDA graphs."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from utils.device import has_bf16


class TrainingStep:
    """Forward pass, backward pass and the step of the optimizers.

    On a single GPU, the first step is computed as on a CPU, and creates the state of the
    optimizers. Then one step for each size of a batch is recorded; all others are replayed.

    Args:
        net: in training mode.
        optimizers: of all its weights, from `utils.optim.optimizers`.
        parallel: `net` in DistributedDataParallel, if there are several processes.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        parallel: nn.Module | None = None,
    ) -> None:
        self.net, self.optimizers, self.parallel = net, optimizers, parallel
        self._recorded: dict[int, RecordedStep] = {}  # by size of the batch
        self._replayed: RecordedStep | None = None

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The forward pass: normalized images (B, 3, 32, 32) -> (B, classes)."""
        self._replayed = None
        if not self._on_one_gpu(images) or not all(each.state for each in self.optimizers):
            return (self.parallel or self.net)(images)
        if len(images) not in self._recorded:
            self._recorded[len(images)] = RecordedStep(self.net, self.optimizers, images)
        self._replayed = self._recorded[len(images)]
        self._logits = self._replayed.logits(images)
        return self._logits

    def update(self, loss: torch.Tensor) -> None:
        """The backward pass and the step of the optimizers.

        Args:
            loss: scalar, computed from the result of the last call of `logits`.
        """
        loss.backward()
        if self._replayed:
            self._replayed.update(self._logits.grad)
            return
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _on_one_gpu(self, images: torch.Tensor) -> bool:
        return images.is_cuda and self.parallel is None


class RecordedStep:
    """A training step for batches of one size, as two CUDA graphs.

    The first is the forward pass, the second the backward pass and the step of the optimizers. A
    GPU computes a layer of a small network in less time than Python needs to start it; a graph is
    started by a single call. The results are those of the same step without graphs.

    Args:
        net: in training mode, on a GPU.
        optimizers: of all its weights. Their state exists, and learning rates are tensors there.
        images: a batch (B, 3, 32, 32) of this size, there as well.
    """

    def __init__(
        self, net: nn.Module, optimizers: Sequence[torch.optim.Optimizer], images: torch.Tensor
    ) -> None:
        self._images = images.clone()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # New leaves that share the memory of the weights. Gradients of the weights themselves are
        # bound to the stream of the first step, which cannot be recorded.
        leaves = {name: weight.detach().requires_grad_() for name, weight in net.named_parameters()}
        stream = torch.cuda.Stream()
        # Without a cache: casts of the weights that are not in the graph would not be replayed.
        cast = torch.autocast("cuda", torch.bfloat16, has_bf16(images.device), cache_enabled=False)
        statistics = [buffer.clone() for buffer in net.buffers()]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream), cast:
            for _ in range(3):  # libraries choose their algorithms in the first calls
                logits = functional_call(net, leaves, self._images)
                torch.autograd.grad(logits.sum(), list(leaves.values()))
        torch.cuda.synchronize()
        with torch.cuda.graph(self._forward, stream=stream), cast:
            logits = functional_call(net, leaves, self._images)
        self._logits, self._gradient = logits.detach(), torch.zeros_like(logits)
        with torch.cuda.graph(self._backward, pool=self._forward.pool(), stream=stream):
            gradients = torch.autograd.grad(logits, list(leaves.values()), self._gradient)
            for weight, gradient in zip(net.parameters(), gradients, strict=True):
                weight.grad = gradient
            for optimizer in optimizers:
                optimizer.step()
        for weight in net.parameters():
            weight.grad = None
        for buffer, before in zip(net.buffers(), statistics, strict=True):
            buffer.copy_(before)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The forward pass. Returns a leaf (B, classes), valid until the next call."""
        self._images.copy_(images)
        self._forward.replay()
        return self._logits.detach().requires_grad_()

    def update(self, gradient: torch.Tensor) -> None:
        """The backward pass and the step of the optimizers, after `logits`.

        Args:
            gradient: of the loss with respect to these logits, (B, classes).
        """
        self._gradient.copy_(gradient)
        self._backward.replay()
