# SPDX-License-Identifier: Apache-2.0
"""`pvswitch bench`: pvswitch next to other switches on this machine, in turns, with figures that say how sure they are.

How it works. A case (`cases`) says what guests there are and what they do. `measure` goes through all cases, and
through them all again in each round; in a case every switch has its turn (A/B/A/B...), in a fresh process, with fresh
guests.
`switches` starts what is compared: pvswitch as any user runs it, OVS-DPDK, testpmd's vhost ports, a Linux bridge.
`generator` starts the guests in a process of their own, which is `load`: our C driver on real vhost-user sockets. Some
cases have testpmd for that (`circle`), or QEMU guests (`tcp`). `stats` makes medians and intervals of the samples,
`report` a table, `plot` an SVG, `results` the JSON document that holds every sample, and that `compare` reads.

The command calls `command.main`. Nothing of a switch's inside is imported here: switches are measured from outside.
"""
