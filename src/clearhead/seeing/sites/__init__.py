"""Where attention is computed, in any model: each way of calling it is a site, and what is seen there a `Sighting`.

Reading order: sighting -> frames -> whereabouts -> inference_kernel -> fused -> normaliser; by hand: found -> byhand ->
vocabulary -> scores -> einsum -> trials -> edges; what others call: interface -> flex -> flash -> layouts -> texts ->
aten; compilers: compiled -> compiler -> graphs.
"""
