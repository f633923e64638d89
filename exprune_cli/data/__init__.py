"""Samples from a folder, streamed: one file and the samples of a batch are in memory at a time.

They may also come from memory, see :mod:`exprune_cli.data.sources`; what is said of files holds for
each dict of arrays then.

A folder holds files of one of these formats, used in the order of their names:

- ``*.npz``: arrays by input name; a key ``label`` (unless an input is called so) holds labels, and a key
  ``group`` (likewise) says which samples belong together,
- ``*.npy``: the only input of a model with one input,
- ``test_data_set_*/input_N.pb``: tensors, one per input in the model's order; ``output_N.pb``
  beside them are ignored.

What a sample is depends on the model's inputs:

==============================================  ==================================================
first dimension of all inputs                   samples of a file
==============================================  ==================================================
dynamic, with the same symbol (or all unnamed)  n samples along axis 0, if all arrays of the file,
                                                the label too, have first size n; several can be
                                                run at once
the same static size d                          n / d samples of d rows each, if all arrays have
                                                the same first size n, a multiple of d; each is
                                                run on its own
anything else                                   one, the arrays as they are, run on its own
==============================================  ==================================================

In a file with one sample the label may be a single number.

A group is a whole number (any integer type) or a string of at most 256 characters per sample, ``[n]`` for a file of
``n`` samples, or a single one for one sample. Samples with equal values, in whatever files of the folder, are
of one group: see :mod:`exprune_cli.data.groups`. All files have groups, or none has.
"""

from __future__ import annotations

import numpy as np
import onnx

from exprune_cli.data.dataset import Batch, DataSet, _Folder, digest_of
from exprune_cli.data.layout import read_inputs
from exprune_cli.data.sources import Data, DataReader, name_of, stored_arrays

__all__ = ["Batch", "Data", "DataReader", "DataSet", "digest_of", "name_of", "open_data"]


def open_data(data: Data, proto: onnx.ModelProto) -> DataSet:
    """Opens samples for a model: types and shapes of all of them are checked at once.

    Args:
        data: The folder's path, or samples in memory, see :mod:`exprune_cli.data.sources`.
        proto: The model that is to be fed.

    Raises:
        ExpruneError: The folder or one of its files does not fit; the message says which.
        UsageError: Samples cannot be taken from an object of that type.
    """
    inputs = read_inputs(proto)
    folder = _Folder(name_of(data), stored_arrays(data, inputs), inputs)
    return DataSet(folder, np.arange(folder.starts[-1], dtype=np.int64))
