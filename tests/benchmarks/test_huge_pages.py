import ml_dtypes
import numpy as np
import pytest

from benchmarks.huge_pages import huge_page_tensor


@pytest.mark.parametrize("dtype", [np.float32, np.int32, ml_dtypes.bfloat16])
def test_copy(dtype):
    array = np.arange(2 * 5 * 7).reshape(2, 5, 7).astype(dtype)[:, ::2]
    tensor = huge_page_tensor(array)
    copy = tensor.numpy()
    assert copy.dtype == array.dtype
    np.testing.assert_array_equal(copy, array)
