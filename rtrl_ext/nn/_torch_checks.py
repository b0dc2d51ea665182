"""The checking methods of ``torch.nn.RNNBase``, for code that calls them on a recurrent module."""

from typing import Any

from torch import Tensor, is_autocast_enabled, nn


class TorchChecks:
    """Mixin: the methods take the same arguments and raise the same types of errors as torch's.

    This library's own ``forward`` makes its checks elsewhere, with its own messages.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        raise NotImplementedError

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """``input`` is (T, B, input_size), or (rows, input_size) with ``batch_sizes``.

        Raises ValueError for a dtype other than the weights' (outside autocast), RuntimeError for a
        wrong rank or last size.
        """
        dtype = self.all_weights[0][0].dtype
        if input.dtype != dtype and not is_autocast_enabled(input.device.type):
            raise ValueError(f"input has dtype {input.dtype}; expected {dtype}, as the weights")
        rank = 3 if batch_sizes is None else 2
        if input.dim() != rank:
            raise RuntimeError(f"input has {input.dim()} dimensions; expected {rank}")
        if input.size(-1) != self.input_size:
            came = input.size(-1)
            raise RuntimeError(f"input has last size {came}; expected {self.input_size}")

    def get_expected_hidden_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """(layers, B, n) for an input, or for the ``batch_sizes`` of a packed one."""
        if batch_sizes is not None:
            batch = int(batch_sizes[0])
        else:
            batch = input.size(0 if self.batch_first else 1)
        return self.num_layers, batch, self.hidden_size

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """The size of an LSTM's c, that of its h."""
        return self.get_expected_hidden_size(input, batch_sizes)

    def check_hidden_size(
        self,
        hx: Tensor,
        expected_hidden_size: tuple[int, int, int],
        msg: str = "Expected hidden size {}, got {}",
    ) -> None:
        """RuntimeError with ``msg`` unless ``hx`` has the expected shape."""
        if tuple(hx.shape) != tuple(expected_hidden_size):
            raise RuntimeError(msg.format(expected_hidden_size, list(hx.shape)))

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """`check_input`, and `check_hidden_size` of ``hidden``, a tensor or a tuple of them."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        for state in hidden if isinstance(hidden, tuple) else (hidden,):
            self.check_hidden_size(state, expected)

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """States (layers, B, n), or a tuple, with their rows in another order; None leaves them."""
        if permutation is None:
            return hx
        if isinstance(hx, tuple):
            return tuple(state.index_select(1, permutation) for state in hx)
        return hx.index_select(1, permutation)
