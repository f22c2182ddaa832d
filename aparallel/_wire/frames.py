"""The frames on a worker's socket pair.

Both directions send a fixed header and a body. Nothing here is stored, and both ends are the
same version of this package, so the format carries no version.

To the worker::

    header   kind u8, pad u8 u16, control u32, tail u64, first u64          little-endian
    control  a pickle. SETUP: a dict; CALLS: (functions, forget, batches, loans);
             VERDICT: the number of the first call that was taken back;
             SEGMENT: (number, sizes) of the shared memory whose descriptors come along;
             MEMORY: (segments discarded, segments given back, when to free the unused: "soon", "now" or
             None);
             RELIEVED: None, the answer to SHORTAGE
    tail     raw bytes, in the order in which they are mentioned: what is too large to be
             copied into the pickle; SETUP: the pickle of the pool's initializer, if it has one
    first    CALLS: the number of the first call among all ever sent to this worker

    functions  [(id, blob)]            functions that this worker does not know yet; blob: a
                                       pickle, or an int, the size of one in the tail
    forget     [id]                    functions that it may drop
    batches    [(id, [payload], (largest, folder))]
                                       payload: a number, a str or None, the one plain argument,
                                       or a tuple of plain arguments,
                                       or a dict, of plain ones by name and such a tuple by UNNAMED,
                                       or bytes, a pickle of (args, kwargs, variables),
                                       or [bytes, int or pair, [(segment, offset, size, mode)]], such a
                                       pickle, or the size of one in the tail, or (position, size) of
                                       one in the ring (``ring.py``), and where its large buffers lie;
                                       results leave buffers of more than *largest* bytes in
                                       shared memory, or in a file in *folder*
    loans      [(segment, count)]      how often the payloads refer to which segments

To the parent::

    header   kind u8, pad u8 u16, count u32, first u64, busy u64, size u64
    body     OUTCOMES, PLAIN_OUTCOMES: *count* outcomes (see ``outbox``), all plain in the latter;
             LARGE_VALUE, LARGE_FAILURE: the pickle of one outcome;
             VALUE_IN_RING: a pickle of (position, size) of the pickle of one outcome that takes long to read;
             VALUE_IN_SEGMENT: a pickle of (segment, [(offset, size)], the outcome's pickle);
             READY: empty; NOT_READY: the initializer's failure;
             SEGMENT: a pickle of (number, sizes); the descriptors come along;
             MEMORY: a pickle of (segments discarded, segments given back, how often it has freed the
             unused "now");
             SHORTAGE: empty; a call's result finds no room, and the worker waits until the parent has
             given back all the memory that it keeps for later

    first    the position of the first outcome in all that this worker ever gives
    busy     nanoseconds that the calls of this frame ran

Segments are pieces of shared memory (``_transfer/segments.py``). Each direction numbers its own. A segment has one or
two parts, one behind the other, with a size and a descriptor each; the descriptors go with the first byte of its
frame. *Given back*: [(number, count, spoiled, lost)]; of what was lent, so many references
are gone; *spoiled* says that a fork may still read it, *lost* that a descriptor found no room, so that they have to be
sent again.

Who owns a call that was sent but may not have started? The worker claims each call before it starts
it, by writing its number into shared memory (``outbox``), and then looks at a counter of recalls there.
The parent, to take back what has not started, raises that counter, waits until the raise must
have been seen (``SETTLE_SECONDS``), and only then reads the claim: calls claimed by then are the worker's,
the rest the parent's, and a VERDICT says so. A worker that sees the counter raised waits for the
verdict before it starts the call that it has just claimed. So either the parent sees the claim
or the worker sees the recall: a call is run by exactly one side, and its owner is known whenever
the worker dies. (Dekker's handshake, with the fence replaced by a wait that is thousands of times longer than any
processor holds a store back. The worker pays two memory accesses a call, 0.1 µs; a token read from a
pipe, which needs no such argument, cost it 0.75.)
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    FreeWhen: TypeAlias = Literal["soon", "now"]

TO_WORKER = Struct("<BxxxIQQ")
TO_PARENT = Struct("<BxxxIQQQ")

# Parent to worker.
SETUP = 1
CALLS = 2
VERDICT = 3
SEGMENT = 4
MEMORY = 5
RELIEVED = 6

# Worker to parent; SEGMENT and MEMORY as above.
READY = 1
NOT_READY = 2
OUTCOMES = 3
LARGE_VALUE = 6
LARGE_FAILURE = 7
VALUE_IN_SEGMENT = 8
PLAIN_OUTCOMES = 9
SHORTAGE = 10
VALUE_IN_RING = 11

# The types of what is plain; of text, what is short. It pickles to a few bytes, refers to nothing and cannot change.
# Neither pickling nor unpickling it can fail, or run anyone's code.
NUMBERS = frozenset({int, float, bool, type(None)})
TEXTS = frozenset({str, bytes})

# In place of a name, in the arguments of a call.
UNNAMED = 0

# What is larger than this is sent from where it lies, in the tail, not copied into a frame's pickle.
OUT_OF_LINE = 16 * 1024

# Event loops count timers in milliseconds and may be one early.
SETTLE_SECONDS = 0.002
