"""Films from an archive over DICOM -> structured reports and secondary captures in the same study."""
