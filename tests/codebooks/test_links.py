"""Links between codes: what is counted, what stands in for it, and means over them."""

import numpy as np
import torch

from vqtool.codebooks.links import Links, count_links, nearest_links


def table(links):
    """(num_old, num_new) weights, each pair once."""
    dense = np.zeros((links.num_old, links.num_new))
    for j, k, weight in zip(links.old, links.new, links.weight, strict=True):
        assert dense[j, k] == 0
        dense[j, k] = weight
    return dense.tolist()


def test_cells_are_counted_and_a_code_that_no_cell_has_is_linked_to_its_nearest():
    links = count_links([[0, 0], [1, 1]], [[0, 2], [2, 2]], np.array([0, 3, 1, 2]), 4, 4)
    assert table(links) == [[1, 0, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0.5], [0, 0.5, 0, 0]]


def test_where_distances_mean_nothing_it_is_linked_to_all_codes_as_often_as_they_are_found():
    links = count_links([0, 0, 0, 2], [1, 1, 1, 1], None, 3, 2)
    assert table(links) == [[0.375, 3], [0, 0], [0.125, 1]]


def test_nearest_codes_share_what_the_old_one_had():
    # Old 0 is nearest to new 0 and 1, its own nearest is 0; old 1 and 2 both fall to new 2, which is nearest to old 2.
    links = nearest_links(np.array([0, 2, 2]), np.array([0, 0, 2]), [3, 0, 7])
    assert table(links) == [[1.75, 1.75, 0], [0, 0, 0.5], [0, 0, 7.5]]
    assert table(nearest_links(np.array([1, 0]), np.array([1, 0]))) == [[0, 1], [1, 0]]


def test_means_of_rows_are_those_of_the_cells():
    noise = np.random.default_rng(0)
    old, new = noise.integers(0, 5, 300), noise.integers(0, 3, 300)
    links = count_links(old, new, np.zeros(3, np.int64), 5, 3)
    rows = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([rows[old[new == k]].mean(0) for k in range(3)])
    torch.testing.assert_close(links.mean_rows(rows), expected)
    found = links.log_frequencies()
    for log, tokens, num in zip(found, (old, new), (5, 3), strict=True):
        torch.testing.assert_close(log.exp(), torch.from_numpy(np.bincount(tokens, minlength=num)).double())


def test_the_frequency_of_a_code_without_links_counts_as_one():
    links = Links(np.array([1]), np.array([0]), np.array([4.0]), 2, 1)
    assert links.log_frequencies()[0].exp().tolist() == [1.0, 4.0]
