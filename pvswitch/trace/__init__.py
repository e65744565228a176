# SPDX-License-Identifier: Apache-2.0
"""What would become of a frame, in words: `pvswitch trace`.

How it works: `frame` makes a frame from the fields of a match; the core says step by step what would become of it
(`pvswitch.datapath.trace`); `tracer` puts names in the place of its numbers (`record`); `story` tells it in words,
with the edits that `head` finds between the frame that came and each that leaves (`model` is what the API answers).
All but the core's part is pure: values in, values out. Every room may import it; it imports no room.
"""
