"""The training step of a network; on a GPU it is recorded once and replayed, with CUDA graphs."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from utils.device import has_bf16
from utils.distributed import ranks
from utils.files import UserError


class Outputs(nn.Module):
    """A network that also returns what some of its modules return.

    Maps images to a tuple: the logits, then the output of each module of `layers`, which are names
    as in `net.named_modules()`. Raises UserError if `net` has no module of such a name.
    """

    def __init__(self, net: nn.Module, layers: Sequence[str] = ()) -> None:
        super().__init__()
        self.net, self.layers, self._seen = net, layers, {}
        for name in layers:
            try:
                net.get_submodule(name).register_forward_hook(self._keep(name))
            except AttributeError as error:
                raise UserError(f"LAYERS: {type(net).__name__} has no module {name!r}") from error

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
            self._seen[name] = output

        return keep

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.net(images)
        return logits, *(self._seen.pop(name) for name in self.layers)


class TrainingStep:
    """Forward pass, backward pass and the step of the optimizers.

    The loss may use the logits and the outputs of some modules, see `Outputs`.

    On a single GPU, the first step is computed as on a CPU, and creates the state of the
    optimizers. Then one step for each size of a batch is recorded; all others are replayed.

    Args:
        net: in training mode.
        optimizers: of all its weights, from `utils.optim.optimizers`.
        layers: names of modules whose outputs are returned beside the logits.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        layers: Sequence[str] = (),
    ) -> None:
        self.net, self.optimizers = Outputs(net, layers), optimizers
        self.parallel = DistributedDataParallel(self.net) if ranks() > 1 else None
        self._recorded: dict[int, RecordedStep] = {}  # by size of the batch
        self._replayed: RecordedStep | None = None

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The forward pass: normalized images (B, 3, H, W) -> what `Outputs` returns."""
        self._replayed = None
        if not self._on_one_gpu(images) or not all(each.state for each in self.optimizers):
            return (self.parallel or self.net)(images)
        if len(images) not in self._recorded:
            self._recorded[len(images)] = RecordedStep(self.net, self.optimizers, images)
        self._replayed = self._recorded[len(images)]
        self._outputs = self._replayed.outputs(images)
        return self._outputs

    def update(self, loss: torch.Tensor) -> None:
        """The backward pass and the step of the optimizers.

        `loss` is a scalar, computed from the result of the last call of `outputs`.
        """
        loss.backward()
        if self._replayed:
            self._replayed.update([output.grad for output in self._outputs])
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
        net: an `Outputs` in training mode, on a GPU.
        optimizers: of all its weights. Their state exists, and learning rates are tensors there.
        images: a batch (B, 3, S, S) of this size, there as well.
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
                outputs = functional_call(net, leaves, self._images)
                torch.autograd.grad([each.sum() for each in outputs], list(leaves.values()))
        torch.cuda.synchronize()
        with torch.cuda.graph(self._forward, stream=stream), cast:
            outputs = functional_call(net, leaves, self._images)
        self._outputs = [each.detach() for each in outputs]
        self._gradients = [torch.zeros_like(each) for each in outputs]
        with torch.cuda.graph(self._backward, pool=self._forward.pool(), stream=stream):
            gradients = torch.autograd.grad(outputs, list(leaves.values()), self._gradients)
            for weight, gradient in zip(net.parameters(), gradients, strict=True):
                weight.grad = gradient
            for optimizer in optimizers:
                optimizer.step()
        for weight in net.parameters():
            weight.grad = None
        for buffer, before in zip(net.buffers(), statistics, strict=True):
            buffer.copy_(before)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The forward pass. Returns leaves, valid until the next call."""
        self._images.copy_(images)
        self._forward.replay()
        return tuple(each.detach().requires_grad_() for each in self._outputs)

    def update(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """The backward pass and the step of the optimizers, after `outputs`.

        `gradients` are of the loss with respect to these; None if it does not use one.
        """
        for kept, gradient in zip(self._gradients, gradients, strict=True):
            if gradient is None:
                kept.zero_()
            else:
                kept.copy_(gradient)
        self._backward.replay()
