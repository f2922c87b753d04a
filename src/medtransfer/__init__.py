"""Transfer learning on medical images: a study of freezing configurations of VGG16."""
