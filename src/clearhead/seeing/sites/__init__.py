"""Where attention is computed, in any model: each way of calling it is a site, and what is seen there a `Sighting`.

Reading order: sighting -> whereabouts -> fused -> normaliser; by hand: found -> byhand -> vocabulary -> scores ->
einsum -> trials; what others call: interface -> flex -> flash -> layouts -> texts; compilers: compiled ->
compiler -> graphs.
"""
