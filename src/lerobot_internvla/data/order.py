"""In which order a rank draws: (seed, rank, draw) -> piece and frame, by arithmetic alone.

Draw number n of a rank is found without the draws before it. Nothing is kept between draws and nothing needs to be
saved: a resumed run, another number of workers and a second look at sample 12,345,678 all see the same frames.

Which piece: the pieces are the leaves of a Huffman tree of their masses. At every fork, the first n draws that arrive
send floor(n x share + phase) of them to the left, so both sides get theirs as evenly as whole numbers allow. Going
down the tree turns "draw n of the rank" into "draw k of the piece" in about log2(pieces) steps. After any number of
draws, every piece has its quota to within 2 draws (proof at ``_PHASES``), so batches are stratified as well.

Which frame: draw k of a piece with F frames belongs to pass k // F and is frame number k % F of that pass in a keyed
permutation (a Feistel network), a different one in every pass. So every frame of a piece is drawn once before any is
drawn again, and no table of F numbers exists: 692 million frames cost as much memory as one.
"""

import hashlib
import heapq
import math
import struct
from collections.abc import Sequence

from lerobot_internvla.data.rank_plan import Piece
from lerobot_internvla.errors import InternVLAError

_SHARE_BITS = 60
_ONE = 1 << _SHARE_BITS

# Phases lie in this interval. Then a fork is off by at most 7/12 of a draw, and of that a piece inherits its part of
# the branch. In a Huffman tree an ancestor's mass is at least the sum of the two below it on the path (otherwise they
# would have been joined in another order), so those parts fall like 1, 1, 1/2, 1/3, 1/5, ... and sum to 3.36 at most:
# a piece is off by less than 7/12 x 3.36 < 2 draws, whatever the masses.
_PHASES = (5 / 12, 7 / 12)


class DrawOrder:
    """The order of one rank's draws: ``order(draw)`` for ``draw`` = 0, 1, 2, ... without end.

    Args:
        pieces_of_rank: ``RankPlan.of_rank(rank)``; draws are shared out in proportion to their masses.
        seed: of the training run. Ranks draw differently even where they hold the same frames.
    """

    def __init__(self, pieces_of_rank: Sequence[Piece], *, seed: int, rank: int) -> None:
        if not pieces_of_rank:
            raise InternVLAError(f"Rank {rank} has no pieces to draw from. Expected RankPlan.of_rank(rank).")
        self.pieces = tuple(pieces_of_rank)
        self.seed = seed
        self.rank = rank
        self._forks, self._root = self._grow_tree()

    def __call__(self, draw: int) -> tuple[int, int]:
        """Draw number ``draw`` -> (index into ``pieces``, position of the frame in the piece's source)."""
        if draw < 0:
            raise InternVLAError(f"Draws are numbered from 0; got {draw}.")
        node, count = self._root, draw
        while node >= 0:
            share, phase, left, right = self._forks[node]
            to_the_left = (count * share + phase) >> _SHARE_BITS
            if ((count + 1) * share + phase) >> _SHARE_BITS > to_the_left:
                node, count = left, to_the_left
            else:
                node, count = right, count - to_the_left
        piece = self.pieces[~node]
        in_pass, position = divmod(count, piece.num_frames)
        keys = _random_words("frames", self.seed, self.rank, piece.source, piece.first_frame, in_pass)
        return ~node, piece.first_frame + permuted(position, piece.num_frames, keys)

    def draws_of_pieces(self, draws: int) -> list[int]:
        """How many of the first ``draws`` draws go to each piece, without making them."""
        counts = [0] * len(self.pieces)
        branches = [(self._root, draws)]
        while branches:
            node, count = branches.pop()
            if node < 0:
                counts[~node] = count
                continue
            share, phase, left, right = self._forks[node]
            to_the_left = (count * share + phase) >> _SHARE_BITS
            branches += [(left, to_the_left), (right, count - to_the_left)]
        return counts

    def _grow_tree(self) -> tuple[list[tuple[int, int, int, int]], int]:
        """Forks (share of the left branch, phase, left, right), and the root. Node ~i is the leaf of piece i."""
        lightest_first = [(piece.mass, index, ~index) for index, piece in enumerate(self.pieces)]
        heapq.heapify(lightest_first)
        forks: list[tuple[int, int, int, int]] = []
        while len(lightest_first) > 1:
            left_mass, _, left = heapq.heappop(lightest_first)
            right_mass, _, right = heapq.heappop(lightest_first)
            share = round(left_mass / (left_mass + right_mass) * _ONE)
            low, high = _PHASES
            phase = low + (high - low) * _random_words("phase", self.seed, self.rank, len(forks))[0] / 2**64
            forks.append((min(max(share, 1), _ONE - 1), int(phase * _ONE), left, right))
            # The second entry breaks ties between equal masses, so that the tree is the same everywhere.
            heapq.heappush(lightest_first, (left_mass + right_mass, len(self.pieces) + len(forks), len(forks) - 1))
        return forks, lightest_first[0][2]


def permuted(position: int, size: int, keys: Sequence[int]) -> int:
    """Where a keyed permutation of range(size) sends ``position``. One Feistel round per 64-bit key.

    A round moves rows by a function of the column, or columns by a function of the row, in a grid of about
    sqrt(size) x sqrt(size) cells: whatever the function, it can be undone. The fewer than sqrt(size) cells beyond
    ``size`` are walked through (Black and Rogaway, "Ciphers with arbitrary finite domains").
    """
    columns = math.isqrt(size - 1) + 1 if size > 1 else 1
    rows = -(-size // columns)
    while True:
        row, column = divmod(position, columns)
        for move_row, move_column in zip(keys[::2], keys[1::2], strict=True):
            row = (row + _mix(column ^ move_row)) % rows
            column = (column + _mix(row ^ move_column)) % columns
        position = row * columns + column
        if position < size:
            return position


def _mix(word: int) -> int:
    """A 64-bit word -> another in which every bit depends on every bit (the finaliser of splitmix64, public domain)."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return word ^ (word >> 31)


def _random_words(purpose: str, *numbers: int) -> tuple[int, ...]:
    """Eight 64-bit words that depend on everything given; the same on every computer and Python."""
    text = f"{purpose} {' '.join(map(str, numbers))}"
    return struct.unpack("<8Q", hashlib.blake2b(text.encode(), digest_size=64).digest())
