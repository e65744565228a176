/* SPDX-License-Identifier: Apache-2.0 */
/* fits.c - is a frame small enough for a tunnel? (see decide.h). Apart from decide.c, which is compiled twice. */
#include "decide.h"

__attribute__((noinline)) bool
pvs_fits_tunnel(const struct pvs_frame *frame, const struct pvs_port_view *out, const struct pvs_edit *edit)
{
    int32_t longer = (edit->push ? PVS_VLAN_HLEN : 0) - edit->cut;

    return out->tunnel != NULL &&
           pvs_pieces_fit(frame, longer, pvs_tunnel_room(out, (uint32_t)(frame->parsed.l3_offset + longer)));
}
