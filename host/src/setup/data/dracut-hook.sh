#!/bin/sh
# Written by 'no43 host setup --reserve'; 'no43 host setup --undo' removes it.
/sbin/no43-reserve
