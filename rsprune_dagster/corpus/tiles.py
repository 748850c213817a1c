"""Table schemas of a tile: its location, and the facts from one read."""

import pyarrow as pa

KINDS = ("file", "tar", "parquet", "window")

LOCATION = pa.schema(
    [
        pa.field(
            "tile_id", pa.string(), nullable=False, metadata={"doc": "path relative to the corpus; member; window"}
        ),
        pa.field(
            "uri", pa.string(), nullable=False, metadata={"doc": "what holds the bytes: file, tar, Parquet, scene"}
        ),
        pa.field("kind", pa.string(), nullable=False, metadata={"doc": "file, tar, parquet or window"}),
        pa.field("offset", pa.int64(), metadata={"doc": "tar: first byte; parquet: row number from 0"}),
        pa.field("length", pa.int64(), metadata={"doc": "bytes, where known"}),
        pa.field("x", pa.int32(), metadata={"doc": "window: left column, px"}),
        pa.field("y", pa.int32(), metadata={"doc": "window: top row, px"}),
        pa.field("w", pa.int32(), metadata={"doc": "window: width, px"}),
        pa.field("h", pa.int32(), metadata={"doc": "window: height, px"}),
        pa.field(
            "stamp", pa.string(), nullable=False, metadata={"doc": "changes when the bytes do: size, mtime, etag"}
        ),
        pa.field(
            "label", pa.string(), metadata={"doc": "the scene, in a labelled reference: the first folder below it"}
        ),
    ]
)
"""The location of a tile: one row per tile, no pixels."""

FACTS = pa.schema(
    [
        pa.field("content_md5", pa.string(), metadata={"doc": "md5 of the encoded bytes; of the pixels, for a window"}),
        pa.field("width_px", pa.int32(), metadata={"doc": "of the tile"}),
        pa.field("height_px", pa.int32(), metadata={"doc": "of the tile"}),
        pa.field("n_bands", pa.int16(), metadata={"doc": "bands of the source"}),
        pa.field("dtype", pa.string(), metadata={"doc": "sample type of the source, as numpy names it"}),
        pa.field("crs", pa.string(), metadata={"doc": "EPSG:n or WKT, where known"}),
        pa.field("lon", pa.float64(), metadata={"doc": "of the centre, degrees, WGS 84"}),
        pa.field("lat", pa.float64(), metadata={"doc": "of the centre, degrees, WGS 84"}),
        pa.field("gsd_m", pa.float64(), metadata={"doc": "ground sample distance, metres"}),
        pa.field("scale_low", pa.float64(), metadata={"doc": "value shown as 0; null for 8-bit sources"}),
        pa.field("scale_high", pa.float64(), metadata={"doc": "value shown as 255; null for 8-bit sources"}),
        pa.field("valid_fraction", pa.float32(), metadata={"doc": "share of pixels that are not nodata"}),
        pa.field("entropy_bits", pa.float32(), metadata={"doc": "grey-level entropy of the whole tile, 0 to 8"}),
        pa.field("patch_entropy_bits", pa.float32(), metadata={"doc": "mean over patches, 0 to 8"}),
        pa.field("thumbnail", pa.binary(), metadata={"doc": "16 x 16 grey levels, row by row, uint8"}),
        pa.field("quarantine", pa.string(), metadata={"doc": "why the tile cannot be used; null when it can"}),
    ]
)
"""The facts that the scan measures for a tile."""

SCAN = pa.schema([*LOCATION, *FACTS])
"""A row of the scan: location and facts."""
