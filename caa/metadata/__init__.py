"""Instance metadata as a pod is to see it: its own VM's, never the worker's.

`aws`, `azure` and `ibmcloud` are the dialects: what is known of a pod VM and a request -> an answer; pure. `facts` is
what they know. `server` speaks HTTP on the listeners that `caa.podnetwork.metadatadoor` makes for each pod, so that who
asks is known by where the request came in. `service` puts the two together for the sandboxes of the node.
"""
